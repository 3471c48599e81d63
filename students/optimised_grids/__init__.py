"""Time grids found from a teacher, for any solver: `python -m students schedule gits --task TASK`.

    gits.py     leaps that leave the teacher's trajectories least [2405.11326]
    ays.py      the least upper bound of a KL divergence [2404.14507]

Each is a function `find(source, steps) -> Found` of a teacher and its seeds (source.py); write.py makes it a file.
"""
