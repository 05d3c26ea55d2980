"""
The operator's face: see, understand and act, in a browser.

Each page is a module of its own with a blueprint; `access` lets people in, `page` shows what they see. Pages are HTML
that works by itself: the one script keeps them fresh and asks before what cannot be undone. Nothing is loaded from
elsewhere.
"""

from flask import Blueprint, Flask

from pipeline.runtime import Runtime
from pipeline.web.dashboard import (
    access,
    callbacks,
    files,
    gallery,
    job,
    jobs,
    models,
    notifications,
    overview,
    page,
    playground,
    review,
    services,
    trail,
)

PAGES = (overview, jobs, job, gallery, playground, models, callbacks, notifications, review, services, trail, files)


def register(app: Flask, rt: Runtime) -> None:
    """Add the dashboard to *app*; where no DASHBOARD_PASSWORD is set there is none."""
    if rt.settings.dashboard_password is None:
        return
    bp = Blueprint(
        "dashboard", __name__, template_folder="templates", static_folder="assets", static_url_path="/assets"
    )
    access.register(app, bp, rt.settings)
    page.register(bp)
    for each in PAGES:
        bp.register_blueprint(each.bp)
    app.register_blueprint(bp)
