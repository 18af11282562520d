"""Review by people: the queue, the answers, and the local page."""
