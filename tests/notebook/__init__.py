"""Tests of `gsm_lab.notebook`."""
