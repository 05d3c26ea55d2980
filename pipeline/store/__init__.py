"""Postgres: the only room that knows SQLAlchemy. Tables, one transaction at a time, and every statement."""
