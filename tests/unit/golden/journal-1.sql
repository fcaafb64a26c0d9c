BEGIN TRANSACTION;
CREATE TABLE events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    time_ns INTEGER NOT NULL, kind TEXT NOT NULL, sandbox_id TEXT, sandbox_name TEXT NOT NULL,
    turn INTEGER NOT NULL, message TEXT NOT NULL, details TEXT NOT NULL, changes TEXT NOT NULL);
INSERT INTO "events" VALUES(1,1795296292309671116,'attached','0000000000000000','web',0,'web attached','{}','[["put", "sandbox", "0000000000000000", "0000000000000000", 1, {"id": "0000000000000000", "name": "web", "container_id": "c", "image": "debian", "image_id": "sha256:0", "container_state": "running", "attached": true, "attached_at_ns": 1, "last_turn": 0, "head_turn": 0, "head_checkpoint_id": null, "mounts": [], "note": ""}]]');
INSERT INTO "events" VALUES(2,1795296292310266450,'turn_begun','0000000000000000','web',1,'turn 1','{"label": "\u00fc \"x\""}','[["put", "turn", "0000000000000000@1", "0000000000000000", 1, {"sandbox_id": "0000000000000000", "number": 1, "harness_turn_id": "t1", "session": "s", "state": "OPEN", "parent": 0, "began_at_ns": 1, "ended_at_ns": 0, "abandoned": false, "state_reason": "", "label": "", "labels": {}, "metadata": {"model": "", "prompt_tokens": 0, "completion_tokens": 0, "tool_name": "", "extra": {}}, "decision": null, "checkpoint_id": null, "timings": {"gate_ns": 0, "inspect_ns": 0, "freeze_ns": 0, "captured_ns": 0, "durable_ns": 0}, "changed_files": 0, "changed_bytes": 0, "stored_bytes": 0, "harness_state": null}]]');
INSERT INTO "events" VALUES(3,1795296292310788316,'turn_begun','0000000000000000','web',2,'turn 2','{"label": "\u00fc \"x\""}','[["put", "turn", "0000000000000000@2", "0000000000000000", 2, {"sandbox_id": "0000000000000000", "number": 2, "harness_turn_id": "t2", "session": "s", "state": "OPEN", "parent": 1, "began_at_ns": 2, "ended_at_ns": 0, "abandoned": false, "state_reason": "", "label": "", "labels": {}, "metadata": {"model": "", "prompt_tokens": 0, "completion_tokens": 0, "tool_name": "", "extra": {}}, "decision": null, "checkpoint_id": null, "timings": {"gate_ns": 0, "inspect_ns": 0, "freeze_ns": 0, "captured_ns": 0, "durable_ns": 0}, "changed_files": 0, "changed_bytes": 0, "stored_bytes": 0, "harness_state": null}]]');
INSERT INTO "events" VALUES(4,1795296292311269431,'turn_begun','0000000000000000','web',3,'turn 3','{"label": "\u00fc \"x\""}','[["put", "turn", "0000000000000000@3", "0000000000000000", 3, {"sandbox_id": "0000000000000000", "number": 3, "harness_turn_id": "t3", "session": "s", "state": "OPEN", "parent": 2, "began_at_ns": 3, "ended_at_ns": 0, "abandoned": false, "state_reason": "", "label": "", "labels": {}, "metadata": {"model": "", "prompt_tokens": 0, "completion_tokens": 0, "tool_name": "", "extra": {}}, "decision": null, "checkpoint_id": null, "timings": {"gate_ns": 0, "inspect_ns": 0, "freeze_ns": 0, "captured_ns": 0, "durable_ns": 0}, "changed_files": 0, "changed_bytes": 0, "stored_bytes": 0, "harness_state": null}]]');
INSERT INTO "events" VALUES(5,1795296292311649586,'restoring','0000000000000000','web',0,'to turn 1','{}','[["put", "intent", "i1", "0000000000000000", 0, {"kind": "restore", "details": {"checkpoint": "c"}}]]');
INSERT INTO "events" VALUES(6,1795296292311987067,'restored','0000000000000000','web',0,'restored','{}','[["delete", "intent", "i1"], ["put", "answer", "r1", "0000000000000000", 0, {"call": "RestoreSandbox", "a": 1}]]');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
INSERT INTO "meta" VALUES('schema','1');
INSERT INTO "meta" VALUES('host','x');
CREATE TABLE projection (
    kind TEXT NOT NULL, key TEXT NOT NULL, sandbox_id TEXT NOT NULL, position INTEGER NOT NULL,
    value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
INSERT INTO "projection" VALUES('answer','r1','0000000000000000',0,'{"call": "RestoreSandbox", "a": 1}');
INSERT INTO "projection" VALUES('sandbox','0000000000000000','0000000000000000',1,'{"id": "0000000000000000", "name": "web", "container_id": "c", "image": "debian", "image_id": "sha256:0", "container_state": "running", "attached": true, "attached_at_ns": 1, "last_turn": 0, "head_turn": 0, "head_checkpoint_id": null, "mounts": [], "note": ""}');
INSERT INTO "projection" VALUES('turn','0000000000000000@1','0000000000000000',1,'{"sandbox_id": "0000000000000000", "number": 1, "harness_turn_id": "t1", "session": "s", "state": "OPEN", "parent": 0, "began_at_ns": 1, "ended_at_ns": 0, "abandoned": false, "state_reason": "", "label": "", "labels": {}, "metadata": {"model": "", "prompt_tokens": 0, "completion_tokens": 0, "tool_name": "", "extra": {}}, "decision": null, "checkpoint_id": null, "timings": {"gate_ns": 0, "inspect_ns": 0, "freeze_ns": 0, "captured_ns": 0, "durable_ns": 0}, "changed_files": 0, "changed_bytes": 0, "stored_bytes": 0, "harness_state": null}');
INSERT INTO "projection" VALUES('turn','0000000000000000@2','0000000000000000',2,'{"sandbox_id": "0000000000000000", "number": 2, "harness_turn_id": "t2", "session": "s", "state": "OPEN", "parent": 1, "began_at_ns": 2, "ended_at_ns": 0, "abandoned": false, "state_reason": "", "label": "", "labels": {}, "metadata": {"model": "", "prompt_tokens": 0, "completion_tokens": 0, "tool_name": "", "extra": {}}, "decision": null, "checkpoint_id": null, "timings": {"gate_ns": 0, "inspect_ns": 0, "freeze_ns": 0, "captured_ns": 0, "durable_ns": 0}, "changed_files": 0, "changed_bytes": 0, "stored_bytes": 0, "harness_state": null}');
INSERT INTO "projection" VALUES('turn','0000000000000000@3','0000000000000000',3,'{"sandbox_id": "0000000000000000", "number": 3, "harness_turn_id": "t3", "session": "s", "state": "OPEN", "parent": 2, "began_at_ns": 3, "ended_at_ns": 0, "abandoned": false, "state_reason": "", "label": "", "labels": {}, "metadata": {"model": "", "prompt_tokens": 0, "completion_tokens": 0, "tool_name": "", "extra": {}}, "decision": null, "checkpoint_id": null, "timings": {"gate_ns": 0, "inspect_ns": 0, "freeze_ns": 0, "captured_ns": 0, "durable_ns": 0}, "changed_files": 0, "changed_bytes": 0, "stored_bytes": 0, "harness_state": null}');
CREATE INDEX projection_by_sandbox ON projection (kind, sandbox_id, position);
CREATE INDEX turn_by_harness ON projection (
    sandbox_id, json_extract(value, '$.session'), json_extract(value, '$.harness_turn_id'))
    WHERE kind = 'turn';
CREATE INDEX turns_by_state ON projection (sandbox_id, json_extract(value, '$.state'))
    WHERE kind = 'turn';
CREATE INDEX checkpoint_sizes ON projection (
    sandbox_id, json_extract(value, '$.stored_bytes')) WHERE kind = 'checkpoint';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',6);
COMMIT;
