"""Published methods that have no code yet, by the stage of a model's life: their cards, and nothing else.

An entry is written with the keywords of `@method(...)`, plus `summary` and `slots`, which a class says itself. Whoever
writes the class moves the entry to its decorator and deletes it here; the registry refuses a key that stands in both
places. Numbers are those of the papers, in their settings; a figure that could not be traced is left out.
"""
