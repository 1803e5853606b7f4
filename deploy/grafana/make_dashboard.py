#!/usr/bin/env python3
"""Writes glmserve.json, the Grafana dashboard of a cluster. Change panels here, never in the JSON.

    python3 deploy/grafana/make_dashboard.py
"""
import json
import pathlib

WIDTH, HEIGHT = 8, 8  # of a panel, in Grafana's grid of 24 columns


def target(expr, legend):
    return {"expr": expr, "legendFormat": legend, "datasource": {"uid": "${source}"}}


def quantiles(metric):
    """The median and the tail of a histogram, over all processes."""
    return [target(f"histogram_quantile({q}, sum by (le) (rate({metric}_bucket[$__rate_interval])))",
                   f"p{int(q * 100)}") for q in (0.5, 0.9, 0.99)]


def rate(metric, by, legend):
    return target(f"sum by ({by}) (rate({metric}[$__rate_interval]))", legend)


ROWS = [
    ("Traffic", [
        ("Requests ended", "reqps", [rate("glmserve_router_requests_total", "outcome", "{{outcome}}")]),
        ("Tokens", "short", [
            target("sum(rate(glmserve_router_prompt_tokens_total[$__rate_interval]))", "prompt"),
            target("sum(rate(glmserve_router_cached_tokens_total[$__rate_interval]))", "prompt, cached"),
            target("sum(rate(glmserve_router_completion_tokens_total[$__rate_interval]))", "answer"),
        ]),
        ("Requests in the router", "short", [
            target("sum(glmserve_router_requests_running)", "at a worker"),
            target("sum(glmserve_router_requests_waiting)", "waiting for a worker"),
            target("sum(glmserve_router_requests_open)", "all"),
            target("sum(glmserve_router_http_connections)", "HTTP connections"),
        ]),
    ]),
    ("Latency, as clients see it", [
        ("Time to first token", "s", quantiles("glmserve_router_time_to_first_token_seconds")),
        ("Between two tokens", "s", quantiles("glmserve_router_inter_token_seconds")),
        ("Whole request", "s", quantiles("glmserve_router_request_seconds")),
    ]),
    ("Queue in the router", [
        ("Wait before a request is sent", "s", quantiles("glmserve_router_queue_wait_seconds")),
        ("Requests refused or given up by the queue", "reqps",
         [rate("glmserve_router_refusals_total", "reason", "{{reason}}")]),
        ("Prompt tokens that wait, prompts held", "short", [
            target("sum(glmserve_router_tokens_waiting)", "tokens waiting"),
            target("sum(glmserve_router_prompt_bytes) / 4", "tokens held"),
        ]),
        ("Retries denied, workers ejected", "short", [
            target("sum(rate(glmserve_router_retries_denied_total[$__rate_interval]))",
                   "retries denied a second"),
            target("sum(rate(glmserve_router_worker_ejections_total[$__rate_interval]))",
                   "ejections a second"),
            target("sum by (instance) (glmserve_router_workers_ejected)", "ejected now {{instance}}"),
        ]),
    ]),
    ("Workers", [
        ("Workers by state", "short", [target("sum by (state) (glmserve_router_workers)", "{{state}}")]),
        ("Requests sent to another worker", "reqps",
         [rate("glmserve_router_retries_total", "reason", "{{reason}}")]),
        ("Running and waiting", "short", [
            target("glmserve_worker_requests_running", "running {{instance}}"),
            target("glmserve_worker_requests_waiting", "waiting {{instance}}"),
        ]),
        ("KV blocks in use", "percentunit", [
            target("glmserve_worker_kv_blocks_used / glmserve_worker_kv_blocks_total", "{{instance}}")]),
        ("Preemptions", "short", [
            rate("glmserve_worker_preemptions_total", "instance", "{{instance}}")]),
        ("Mean step time", "s", [
            target("rate(glmserve_worker_step_seconds_total[$__rate_interval]) / "
                   "rate(glmserve_worker_steps_total[$__rate_interval])", "{{instance}}")]),
        ("Tokens by worker", "short", [
            rate("glmserve_worker_generated_tokens_total", "instance", "generated {{instance}}"),
            rate("glmserve_worker_prompt_tokens_total", "instance", "prompt {{instance}}"),
        ]),
        ("Time to first token, in the worker", "s",
         quantiles("glmserve_worker_time_to_first_token_seconds")),
        ("Between two tokens, in the worker", "s", quantiles("glmserve_worker_inter_token_seconds")),
        ("Requests ended, by worker", "reqps",
         [rate("glmserve_worker_requests_total", "instance, finish", "{{instance}} {{finish}}")]),
    ]),
    ("Prefix cache and drafts", [
        ("Prompt tokens found in the prefix cache", "percentunit", [
            target("rate(glmserve_worker_prefix_cache_hit_tokens_total[$__rate_interval]) / "
                   "rate(glmserve_worker_prefix_cache_queried_tokens_total[$__rate_interval])",
                   "{{instance}}")]),
        ("Prefix cache blocks evicted", "short", [
            rate("glmserve_worker_prefix_cache_evicted_blocks_total", "instance", "{{instance}}")]),
        ("Drafts accepted, by position", "percentunit", [
            target("sum by (position) "
                   "(rate(glmserve_worker_draft_accepted_tokens_total[$__rate_interval])) / "
                   "ignoring (position) group_left "
                   "sum(rate(glmserve_worker_draft_rounds_total[$__rate_interval]))",
                   "position {{position}}")]),
        ("Drafts accepted of those judged", "percentunit", [
            target("sum by (instance) "
                   "(rate(glmserve_worker_draft_accepted_tokens_total[$__rate_interval])) / "
                   "sum by (instance) (rate(glmserve_worker_draft_tokens_total[$__rate_interval]))",
                   "{{instance}}")]),
        ("Drafts a sequence and step", "short", [target("glmserve_worker_drafts", "{{instance}}")]),
    ]),
]


def dashboard():
    panels, y = [], 0
    for title, row in ROWS:
        panels.append({"type": "row", "title": title, "collapsed": False, "panels": [],
                       "gridPos": {"x": 0, "y": y, "w": 24, "h": 1}})
        y += 1
        for i, (name, unit, targets) in enumerate(row):
            for letter, entry in zip("ABCDEFGH", targets):
                entry["refId"] = letter
            panels.append({
                "type": "timeseries", "title": name, "targets": targets,
                "datasource": {"uid": "${source}"},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "gridPos": {"x": i % 3 * WIDTH, "y": y + i // 3 * HEIGHT, "w": WIDTH, "h": HEIGHT}})
        y += (len(row) + 2) // 3 * HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "title": "glmserve", "uid": "glmserve", "schemaVersion": 39, "editable": True,
        "time": {"from": "now-30m", "to": "now"}, "refresh": "5s", "panels": panels,
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus",
                                 "label": "Prometheus"}]},
    }


if __name__ == "__main__":
    path = pathlib.Path(__file__).with_name("glmserve.json")
    path.write_text(json.dumps(dashboard(), indent=1) + "\n")
