"""Runs the package `vbench` for temponas: says what is installed, or scores one dimension.

    python driver.py REQUEST

REQUEST is JSON: {"do": "probe", "answer": FILE} or {"do": "score", "device", "full_info", "output", "videos",
"dimension"}. Standard input is a lifeline: when it closes, this process and those that it started end.
"""

import json
import os
import signal
import sys
import threading
import traceback


def end_with_parent():
    def watch():
        while os.read(0, 1024):
            pass
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpgrp(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def probe(request):
    import importlib.metadata

    import torch
    import vbench

    answer = {
        "vbench": importlib.metadata.version("vbench"),
        "torch": torch.__version__,
        "full_info": os.path.join(os.path.dirname(os.path.abspath(vbench.__file__)), "VBench_full_info.json"),
        "cuda_devices": torch.cuda.device_count(),
    }
    with open(request["answer"], "w", encoding="utf-8") as file:
        json.dump(answer, file)


def score(request):
    import torch
    from vbench import VBench

    scorer = VBench(torch.device(request["device"]), request["full_info"], request["output"])
    scorer.evaluate(
        videos_path=request["videos"],
        name=request["dimension"],
        dimension_list=[request["dimension"]],
        local=True,
        mode="vbench_standard",
    )


if __name__ == "__main__":
    end_with_parent()
    request = json.loads(sys.argv[1])
    status = 0
    try:
        {"probe": probe, "score": score}[request["do"]](request)
    except BaseException:
        traceback.print_exc()
        status = 1
    # Threads of native libraries must not hold the end back.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
