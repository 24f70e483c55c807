"""Celery on one PostgreSQL: the transport, the transactional queue, the schedule's leader, the health check."""
