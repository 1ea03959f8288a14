"""Formats that many datasets are in, whatever they show."""
