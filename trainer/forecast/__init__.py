"""What a run would take, before it takes it: memory, traffic, time, disk, and what the loader must give."""
