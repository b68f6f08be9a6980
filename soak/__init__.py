"""Proof by force: runs are killed, lose power, meet full disks and corrupted files, and end as if nothing had been.

    python -m soak --quick          every part, small, under two minutes
    python -m soak kills --num 10000
    python -m soak cuts --num 1000

Each part can be run alone; everything is drawn from a seed, which is printed. Nothing here is a part of the package.
"""
