"""Our generator graph against other inference engines, on the same weights and prompts.

    python -m benchmarks.peers --models small,base --prompts 1,4,16

Every contender is a process of its own. The last line of stdout is JSON; `report` says what is
in it.
"""
