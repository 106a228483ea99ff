"""From a corpus to a prepared folder: tasks, the engines that run them, shards, a manifest."""
