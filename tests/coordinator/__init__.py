"""The coordinator on a real journal and a real repository: only the container is made up."""
