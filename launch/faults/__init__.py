"""Real faults for real runs, put in from outside: what `./tessera chaos` tries, and how."""
