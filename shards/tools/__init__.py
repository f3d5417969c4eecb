"""What is done with tars and folders of shards: making a manifest, checking, describing, looking."""
