"""One training step of any trainer, planned by `python jobs/serve.py planner`: what to generate, what came of it.

python examples/plan_client.py http://127.0.0.1:8000 ~/.cache/kray/serve.key
"""

import json
import random
import sys
import urllib.request
from pathlib import Path


def call(url: str, key: str, method: str = "POST", body: dict | None = None) -> dict:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body or {}).encode(), headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def train_step(url: str, key: str, prompt_ids: list[str], budget: int, generate) -> dict:
    """generate(prompt_id, n) -> n rewards in [0, 1]. Returns budgets and loss weights of the step."""
    step = {"run": "example", "prompt_ids": prompt_ids, "budget": budget, "mode": "online"}
    plan = f"{url}/v1/plans/" + call(f"{url}/v1/plans", key, body=step)["id"]
    while not (now := call(f"{plan}/take", key, body={"room": 64}))["done"]:
        labels = [{"prompt_id": x["prompt_id"], "rewards": generate(**x)} for x in now["take"]]
        call(f"{plan}/observe", key, body={"labels": labels})
    found = call(plan, key, "GET")
    call(plan, key, "DELETE")  # the beliefs stay, for the run's next step
    return found


if __name__ == "__main__":
    rates = {f"prompt-{i}": i / 20 for i in range(20)}  # in place of a policy: how often each prompt is solved
    draw = random.Random(0).random
    solved = lambda prompt_id, rollouts: [float(draw() < rates[prompt_id]) for _ in range(rollouts)]  # noqa: E731
    step = train_step(sys.argv[1], Path(sys.argv[2]).expanduser().read_text().strip(), list(rates), 160, solved)
    print(dict(zip(step["prompt_ids"], step["budgets"], strict=True)))
