"""The gateway's own OpenAPI document: what is said beside each route, put together."""

from gateway.openapi.operation import Answer, Body, Operation, Shape, described

__all__ = ["Answer", "Body", "Operation", "Shape", "described"]
