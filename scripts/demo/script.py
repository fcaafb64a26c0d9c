"""What the agent does: a small Python project, and a slip of the space bar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """A turn of the script: what the agent runs, and how long its LLM then thinks."""

    command: str
    script: str
    think_s: float


CREATE = r"""
mkdir /app && cd /app
cat >stats.py <<'END'
def mean(values):
    return sum(values) / len(values)
END
cat >test_stats.py <<'END'
import unittest
import stats

class Tests(unittest.TestCase):
    def test_mean(self):
        self.assertEqual(stats.mean([1, 2, 3]), 2)
END
cat >build.py <<'END'
import pathlib, random, zipapp
parts = pathlib.Path("build/parts")
parts.mkdir(parents=True)
(parts / "__main__.py").write_text("import stats; print(stats.median([3, 1, 2]))\n")
(parts / "stats.py").write_bytes(pathlib.Path("stats.py").read_bytes())
(parts / "table.bin").write_bytes(random.Random(1).randbytes(4 << 20) + b"0123456789abcdef" * (4 << 16))
zipapp.create_archive(parts, "build/stats.pyz")
END
printf 'build/\n__pycache__/\n' >.gitignore
git init -q -b main && git add . && git commit -q -m 'mean'
"""

MEDIAN = r"""
cat >>stats.py <<'END'

def median(values):
    return sorted(values)[len(values) // 2]
END
"""

TEST_MEDIAN = r"""
cat >>test_stats.py <<'END'

    def test_median_of_an_even_number(self):
        self.assertEqual(stats.median([4, 1, 3, 2]), 2.5)
END
"""

FIX = r'''
python3 - <<'END'
import pathlib
file = pathlib.Path("stats.py")
old = "    return sorted(values)[len(values) // 2]\n"
new = """    values, half = sorted(values), len(values) // 2
    return (values[half] + values[~half]) / 2
"""
file.write_text(file.read_text().replace(old, new))
END
'''

SERVE = r"""
cat >/root/serve.py <<'END'
import http.server
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        self.send_response(200); self.end_headers(); self.wfile.write(b"%d" % count)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
END
setsid python3 /root/serve.py </dev/null >/root/serve.log 2>&1 &
"""
"""A server that counts in memory how often it was asked; no file holds the number."""

ASK = "curl -sf --retry 20 --retry-delay 1 --retry-connrefused http://127.0.0.1:8000/"

STEPS = (
    Step("git init, write files", CREATE, 8),
    Step("cat *.py", "cat *.py", 4),
    Step("edit stats.py", MEDIAN, 6),
    Step("edit test_stats.py", TEST_MEDIAN, 5),
    Step("python3 -m unittest", "python3 -m unittest 2>&1", 7),
    Step("edit stats.py", FIX, 5),
    Step("python3 -m unittest", "python3 -m unittest 2>&1", 4),
    Step("git commit -am median", "git commit -q -a -m median", 3),
    Step("python3 build.py", "python3 build.py", 4),
    Step("python3 build/*.pyz", "python3 build/*.pyz", 3),
    Step("git log --stat", "git log --stat", 4),
    Step("python3 serve.py &", SERVE, 4),
    Step("curl, three times", f"{ASK}; {ASK}; {ASK}", 3),
    Step("rm -rf build /app …", "rm -rf build /app; pkill -f serve.py", 3),
)
"""The last one is the mistake: `rm -rf build/app` was meant, and the server was not to be ended."""

GOOD_TURN = 13
ASKED = 3
"""How often the server was asked until then."""

NEXT = Step("rm -rf build", "rm -rf build && python3 -m unittest 2>&1", 3)
