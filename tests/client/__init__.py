"""Tests of the client, sync and asyncio, against a fake daemon on a real socket."""
