"""From text to the batch of step N: corpus, tokenizer, token shards, rows, batches."""
