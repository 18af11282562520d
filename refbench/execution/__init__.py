"""How the shards of a run are computed: here, in processes, or by actors of Ray; the bytes are the same."""
