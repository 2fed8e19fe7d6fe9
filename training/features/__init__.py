"""A frozen backbone reads each sentence once: its pooled vectors on disk, and the batches made of them."""
