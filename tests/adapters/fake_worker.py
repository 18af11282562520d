"""A worker that misbehaves as `mode` says; built on the SDK, or on the bare protocol where the SDK would not let it."""

import json
import os
import subprocess
import sys
import time

import numpy as np
from worker_sdk import Answer, serve


class Fake:
    name = "fake"
    max_batch = 4

    def __init__(self, config, device):
        self.mode_of_failure = config.get("mode", "ok")
        self.word = config.get("word", "")
        self.count_file = config.get("count", "")
        self.device = device
        if self.mode_of_failure == "stillborn":
            raise OSError("no weights here")
        if self.mode_of_failure == "slow-start":
            time.sleep(60)
        if self.count_file:
            with open(self.count_file, "a") as file:
                file.write("start\n")

    def segment(self, images, expressions):
        mode = self.mode_of_failure
        hit = any(self.word in e for e in expressions)
        masks = [np.asarray(i.convert("L")) > 60 + 4 * len(e) for i, e in zip(images, expressions)]
        if mode == "noisy":
            print("a stray print")
            sys.stdout.write('{"type": "result", "sid": "forged"}\n')
            sys.stdout.flush()
            os.system("echo from the shell")
            os.write(1, b"straight to the descriptor\n")
        if mode == "verbose":
            sys.stderr.write("x" * 200_000 + "\n")
        if hit and mode == "crash":
            os._exit(7)
        if hit and mode == "segfault":
            os.kill(os.getpid(), 11)
        if hit and mode == "hang":
            subprocess.Popen(["sleep", "4321"])
            time.sleep(3600)
        if hit and mode == "raise":
            raise ValueError("no thanks")
        if mode == "oom" and len(images) > 1:
            raise RuntimeError("CUDA out of memory")
        if hit and mode == "oom-alone":
            raise MemoryError("not even one")
        if hit and mode == "wrong-size":
            masks[0] = masks[0][:-1]
        if hit and mode == "float":
            masks[0] = masks[0].astype(np.float32)
        if mode == "few":
            return masks[:-1]
        return [Answer(m, no_target=not m.any(), score=float(m.mean())) for m in masks]


def say(message):
    sys.stdout.write(message if isinstance(message, str) else json.dumps(message) + "\n")
    sys.stdout.flush()


def without_sdk(mode):
    """The protocol by hand, wrong in one place."""
    for line in sys.stdin:
        message = json.loads(line)
        if message["op"] == "init":
            say({"type": "ready", "protocol": 9 if mode == "future" else 1, "model": "bare", "max_batch": 2})
        if message["op"] == "shutdown":
            return
        if message["op"] != "predict":
            continue
        number = message["id"]
        for item in message["items"]:
            height, width = item["size"]
            mask = {"enc": "coco_rle", "size": [height, width], "data": [height * width]}
            result = {"type": "result", "id": number, "sid": item["sid"], "status": "ok", "mask": mask}
            if mode == "missing":
                continue
            if mode == "unknown":
                result["sid"] = "nobody/asked/for/this"
            if mode == "size":
                mask["size"] = [width, height + 1]
            if mode == "bomb":
                mask.update(enc="bits+zlib", data=BOMB)
            if mode == "encoding":
                mask["enc"] = "telepathy"
            if mode == "nan":
                result["score"] = float("nan")
            if mode == "garbage":
                say("this is not JSON\n")
            if mode == "truncated":
                say('{"type": "result", "id"')
                return
            say(result)
            if mode == "twice":
                say(result)
        say({"type": "done", "id": number})


if __name__ == "__main__":
    if len(sys.argv) > 1 or "bare" in os.path.basename(__file__):
        import base64
        import zlib

        BOMB = base64.b64encode(zlib.compress(bytes(50_000_000))).decode("ascii")
        without_sdk(os.path.basename(__file__).replace("bare_", "").replace(".py", ""))
    else:
        serve(Fake)
