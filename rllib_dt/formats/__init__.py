"""Recorded formats, one module each: readers for all of them, and a writer for the canonical one.

`files` finds the data files of an input and the format of each; a reader yields `Fragment`s,
contiguous steps of one episode in one file; `assembly` joins them into episodes. Nothing here needs
Ray or torch, and nothing read from data is ever executed.

To add a format, write one module with a reader and add one line to the table of its container:
`parquet.LAYOUTS`, `hdf5.LAYOUTS`, `arrow.LAYOUTS` or `npz.LAYOUTS`. A new container is a line of
`files.FORMATS`.
"""
