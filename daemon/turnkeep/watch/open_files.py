def writable_files(pids):
    return set()
