"""Recordings of any number and length to files of text and subtitles."""
