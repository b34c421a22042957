"""Tests of `inference_core`."""
