"""The API for other services, version 1: one page for each thing that can be asked."""

from pipeline.web.api import batch, events, evidence, jobs, lists, outputs

BLUEPRINTS = (jobs.bp, batch.bp, lists.bp, events.bp, evidence.bp, outputs.bp)
