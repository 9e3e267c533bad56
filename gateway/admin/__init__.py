"""The admin API, /admin/v1: tenants, their keys, tiers, all adapters, and the audit.

Only the operator comes here: Authentication asks for the admin key, and each route once more.
"""

from gateway.admin.routes import ADMIN_ROUTES

__all__ = ["ADMIN_ROUTES"]
