"""Dockerfile to graph; pure."""
