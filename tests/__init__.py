"""Tests of gsm_lab; a package so that they can share modules (`tests.browser`)."""
