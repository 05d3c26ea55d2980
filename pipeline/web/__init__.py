"""Flask's door: parse, call, answer."""

from flask import Flask

from pipeline.deployment import WEB_POOL
from pipeline.errors import ConfigError
from pipeline.runtime import Runtime, from_environment
from pipeline.web import api, bodies, callers, dashboard, health, metrics, problems, requests, webhooks
from pipeline.web.openapi import pages
from pipeline.web.watcher import Watcher, places

PATIENCE_S = 5
"""How long a statement may take while a caller waits: with what it takes to notice, 503 comes within 16 s."""


def create_app(rt: Runtime | None = None) -> Flask:
    """The WSGI app, on *rt*, or on a runtime made from the environment."""
    app = Flask("pipeline", static_folder=None)
    try:
        rt = rt or from_environment("web", pool_size=WEB_POOL, patience_s=PATIENCE_S)
        rt.hook  # noqa: B018 - loads it, so that a wrong one is found before the first prompt comes
    except ConfigError as error:
        raise SystemExit(f"pipeline: {error.detail}") from None  # the server would print a traceback
    app.extensions["runtime"] = rt
    app.extensions["watcher"] = Watcher(rt.db, places(rt.settings.web_threads))
    requests.register(app)
    bodies.register(app)
    problems.register(app)
    callers.register(app)
    app.url_map.merge_slashes = False  # a path with two slashes is a mistake; a redirect is an answer nobody expects
    app.url_map.converters["job"] = api.jobs.JobPart
    app.register_blueprint(health.bp)
    app.register_blueprint(metrics.bp)
    app.register_blueprint(pages.bp)
    app.register_blueprint(webhooks.bp)
    for page in api.BLUEPRINTS:
        app.register_blueprint(page)
    dashboard.register(app, rt)
    return app
