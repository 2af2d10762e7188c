"""Stores, packed data sets, sample streams, importers and synthetic surfaces."""
