"""One module for each recorded format; `files.read_file` finds the right one.

Every reader yields `Fragment`s, contiguous steps of one episode in one file, and
`fragments.assemble` joins them to episodes. Nothing here needs Ray: `ingest` runs `read_file`
in Ray Data's tasks.
"""
