"""Tests of `gsm_lab.paper`."""
