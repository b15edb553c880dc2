"""Reads data through Ray Data: from an input to pools of checked episodes, held or streamed.

    files ─▶ tasks ─▶ passes: read ▸ assemble ▸ check ▸ hold out ▸ pack ─▶ survey ─▶ a supply for
    (driver)  (Ray)   (one chain of generators)                            (once)    each learner

`tasks` runs the readers of `rllib_dt.formats` in Ray Data's tasks; `passes` makes one pass over the
input; `survey` makes the first one, which checks everything; `stream` repeats passes for data that
exceeds memory; `offline_data` gives each learner a supply of windows.
"""

from rllib_dt import hook

# an import of RLlib from within this room would register the algorithm, which imports the room
hook.register_first()
