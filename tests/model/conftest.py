import model  # noqa: F401  (lets torchvision, and so open_clip, import beside a CPU build of torch)
