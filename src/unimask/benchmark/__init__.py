"""Measuring how fast and how lean a model is, alone or beside another library's."""
