"""The API's description, made from the code: OpenAPI 3.1 at /openapi.json, the same for people at /docs."""
