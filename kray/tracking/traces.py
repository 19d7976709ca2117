"""Records rollouts as MLflow traces: prompt, response and scoring, with the reward as feedback.

A trace belongs to its training run, whose page lists it under Traces. Its id is derived from run, step and number, so that a
second delivery replaces the first. Its times are those of the step's generation and scoring, because single rollouts are not
timed. Traces are built by hand: MLflow's own tracing keeps one address for the whole process and hides its failures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Columns of the table of samples that a trace shows.
ATTRIBUTES = ("prompt_id", "budget", "belief", "group_success", "meaning", "tokens", "finish")


def log_trace(
    uri: str,
    experiment_id: str,
    run_id: str,
    step: int,
    number: int,
    row: Mapping[str, Any],
    times: tuple[float, float, float],
) -> None:
    """Record one rollout; may raise whatever MLflow raises.

    Args:
        uri: The tracking URI.
        experiment_id: The run's experiment.
        run_id: The training run.
        step: The training step.
        number: Of the trace in its step.
        row: A row of the step's table of samples. The span `generate` has the prompt as the policy reads it, where the row
            has rendered_prompt.
        times: Seconds since 1970 at which generation began, generation ended, and scoring ended.
    """
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.client import TracingClient

    digest = hashlib.blake2b(f"{run_id}/{step}/{number}".encode(), digest_size=16).hexdigest()
    begun, generated, judged = (int(1e9 * at) for at in times)
    prompt, response = row["prompt"], row["response"]
    attributes = {"step": step} | {name: row.get(name) for name in ATTRIBUTES}
    sampled = {"tokens": row.get("tokens"), "finish": row.get("finish")}
    scored = {"response": response, "answer": row.get("answer")}
    parts = {name: value for name, value in row.items() if name.startswith("reward_")}
    reward = {"reward": row.get("reward"), **parts, "detail": row.get("detail")}
    read = row.get("rendered_prompt", prompt)
    spans = [
        _span(digest, 0, "rollout", "CHAIN", (begun, judged), prompt, response, attributes),
        _span(digest, 1, "generate", "LLM", (begun, generated), read, response, sampled),
        _span(digest, 2, "judge", "EVALUATOR", (generated, judged), scored, reward, {}),
    ]
    info = TraceInfo(
        trace_id=f"tr-{digest}",
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=begun // 10**6,
        state=TraceState.OK,
        request_preview=str(row["prompt"])[:1000],
        response_preview=str(row["response"])[:1000],
        execution_duration=(judged - begun) // 10**6,
        trace_metadata={"mlflow.sourceRun": run_id, "mlflow.trace_schema.version": "3"},
        tags={"mlflow.traceName": "rollout", "kray.step": str(step), "kray.prompt_id": str(row.get("prompt_id"))[:250]},
        assessments=[_feedback(f"tr-{digest}", row)],
    )
    client = TracingClient(uri)
    client.start_trace(info)
    client.log_spans(experiment_id, spans)


def _feedback(trace_id: str, row: Mapping[str, Any]) -> Any:
    from mlflow.entities import AssessmentSource, Feedback

    source = AssessmentSource("CODE", "kray.rewards")
    found = Feedback("reward", row.get("reward"), source=source, trace_id=trace_id, rationale=row.get("detail") or None)
    # Derived from the trace, so that a second delivery replaces it.
    found.assessment_id = trace_id.replace("tr-", "a-")
    return found


def _span(
    digest: str,
    number: int,
    name: str,
    kind: str,
    times: tuple[int, int],
    inputs: Any,
    outputs: Any,
    more: Mapping[str, Any],
) -> Any:
    """Make a span of the trace; number 0 is the root, times are nanoseconds since 1970, `more` are attributes."""
    from mlflow.entities import Span

    attributes = {
        "mlflow.traceRequestId": f"tr-{digest}",
        "mlflow.spanType": kind,
        "mlflow.spanInputs": inputs,
        "mlflow.spanOutputs": outputs,
        **{key: value for key, value in more.items() if value is not None},
    }
    return Span.from_dict(
        {
            "name": name,
            "trace_id": f"tr-{digest}",
            "span_id": _span_id(digest, number),
            "parent_span_id": _span_id(digest, 0) if number else "",
            "start_time_unix_nano": times[0],
            "end_time_unix_nano": times[1],
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {key: json.dumps(value, default=str) for key, value in attributes.items()},
        }
    )


def _span_id(digest: str, number: int) -> str:
    return hashlib.blake2b(f"{digest}/{number}".encode(), digest_size=8).hexdigest()
