"""What keeps a worker in: namespaces, Landlock, seccomp, mounts."""
