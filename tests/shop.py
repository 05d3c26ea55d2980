"""
Another team's Flask app on our Postgres: a schema, a table and transactions of its own, and our jobs in them.

`python -m tests.shop URL orm` takes one order and dies in the moment that has committed.
"""

import os
import signal
import sys
from uuid import UUID

import psycopg
from flask import Flask, request
from flask.typing import ResponseReturnValue
from sqlalchemy import Engine, MetaData, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pipeline
from tests.factories import MODEL


class Base(DeclarativeBase):
    metadata = MetaData(schema="shop")


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    prompt: Mapped[str]
    job_id: Mapped[UUID | None]


def create_app(url: str) -> Flask:
    """The app on that database; orders come with the ORM (`/orders/orm`), or with psycopg alone (`/orders/raw`)."""
    app = Flask("shop")
    engine = create_engine(url)
    app.extensions["engine"] = engine

    @app.post("/orders/<kind>")
    def place(kind: str) -> ResponseReturnValue:
        order = request.get_json()
        job_id = _with_the_orm(engine, order["prompt"]) if kind == "orm" else _with_psycopg(url, order["prompt"])
        if order.get("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return {"job_id": str(job_id)}, 201

    return app


def _with_the_orm(engine: Engine, prompt: str) -> UUID:
    with Session(engine) as session, session.begin():
        order = Order(prompt=prompt)
        session.add(order)
        session.flush()
        order.job_id = job_id = pipeline.enqueue(
            session, service="shop", model=MODEL, input={"prompt": prompt}, metadata={"order": str(order.id)}
        )
        _think_again(prompt)
    return job_id


def _with_psycopg(url: str, prompt: str) -> UUID:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        job_id = pipeline.enqueue(connection, service="shop", input={"prompt": prompt})
        connection.execute("INSERT INTO shop.orders (prompt, job_id) VALUES (%s, %s)", (prompt, job_id))
        _think_again(prompt)
    return job_id


def _think_again(prompt: str) -> None:
    if "never mind" in prompt:
        raise ValueError("the customer thought again")


if __name__ == "__main__":
    _, url, kind = sys.argv
    create_app(url).test_client().post(f"/orders/{kind}", json={"prompt": "a last wish", "die": True})
