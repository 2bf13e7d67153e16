"""Asset checks. They run after each materialization of their assets and compare an observed value with a limit."""

from fraud_assets.checks.alerts import alert_checks
from fraud_assets.checks.flow import flow_checks
from fraud_assets.checks.model import model_checks
from fraud_assets.checks.schemas import schema_checks

CHECKS = [schema_checks, flow_checks, alert_checks, model_checks]
