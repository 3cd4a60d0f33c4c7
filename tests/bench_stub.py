"""A worker without a library, for the tests of the bench: its steps sleep, and its kernels decide on its loss."""

import os
import sys
import time

from ms_gpt.bench.serving import Worker, serve


class Stub(Worker):
    def load(self, case, folder):
        self.case = case
        self.step = lambda: time.sleep(0.001 if os.environ["MS_GPT_KERNELS"] == "on" else 0.004)
        sys.stdout.write("what a library says is no answer\n")
        return {"stub": "1"}

    def check(self):
        if self.case["name"] == "decode":
            return {"ids": [[1, 2]] if os.environ["MS_GPT_KERNELS"] == "on" else [[1, 3]]}
        return {"loss": 1.0 if os.environ["MS_GPT_KERNELS"] == "on" or self.case["batch"] == 1 else 1.001}

    def start(self):
        if self.case["length"] == 7:
            sys.exit("out of paper")
        return {"seconds": 0.5}

    def product(self):
        return lambda: time.sleep(0.001)

    def profile_steps(self, folder, steps):
        return [("Add", 2 * steps, 1.0 * steps), ("MatMul", steps, 3.0 * steps)]


if __name__ == "__main__":
    serve(Stub)
