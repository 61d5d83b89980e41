# What prefect.yaml and the files beside it declare, as Terraform's own: the work pool, deployments with their
# schedules and triggers, automations. Nothing is declared twice: the files are read. Take either this or
# `headrace deploy`; the two would undo each other's changes.
terraform {
  required_version = ">= 1.5"
  required_providers {
    prefect = {
      source  = "prefecthq/prefect"
      version = ">= 3.4"
    }
  }
}

provider "prefect" {
  endpoint       = var.prefect_api_url
  basic_auth_key = var.prefect_api_auth_string
}

resource "prefect_work_pool" "headrace" {
  name              = "headrace"
  type              = var.pool
  base_job_template = jsonencode(jsondecode(file("${path.module}/../${local.templates[var.pool]}")))
}

resource "prefect_flow" "of" {
  for_each = toset([for one in values(local.deployments) : one.flow])
  name     = each.key
}

resource "prefect_deployment" "of" {
  for_each            = local.deployments
  name                = each.value.name
  flow_id             = prefect_flow.of[each.value.flow].id
  entrypoint          = each.value.entrypoint
  path                = var.path
  description         = each.value.description
  tags                = each.value.tags
  parameters          = jsonencode(each.value.parameters)
  job_variables       = jsonencode(each.value.job_variables)
  work_pool_name      = prefect_work_pool.headrace.name
  work_queue_name     = "default"
  concurrency_limit   = each.value.concurrency_limit
  concurrency_options = each.value.concurrency_limit == null ? null : { collision_strategy = each.value.collision }
}

resource "prefect_deployment_schedule" "of" {
  for_each      = local.schedules
  deployment_id = prefect_deployment.of[each.value.deployment].id
  slug          = each.value.slug
  active        = each.value.active
  cron          = each.value.cron
  interval      = each.value.interval
  timezone      = each.value.timezone
}

resource "prefect_automation" "trigger" {
  for_each    = local.triggers
  name        = each.value.name
  description = "Runs the deployment ${each.value.deployment}."
  enabled     = true
  trigger = {
    event = {
      posture       = "Reactive"
      match         = jsonencode(each.value.match)
      match_related = jsonencode(each.value.match_related)
      for_each      = []
      after         = []
      expect        = each.value.expect
      threshold     = 1
      within        = 0
    }
  }
  actions = [{
    type          = "run-deployment"
    source        = "selected"
    deployment_id = prefect_deployment.of[each.value.deployment].id
    parameters    = jsonencode(each.value.parameters)
    job_variables = jsonencode({})
  }]
}

resource "prefect_automation" "of" {
  for_each    = local.automations
  name        = each.key
  description = each.value.description
  enabled     = true
  trigger = {
    event = {
      posture       = each.value.trigger.posture
      match         = jsonencode(each.value.trigger.match)
      match_related = jsonencode(each.value.trigger.match_related)
      for_each      = each.value.trigger.for_each
      after         = each.value.trigger.after
      expect        = each.value.trigger.expect
      threshold     = each.value.trigger.threshold
      within        = each.value.trigger.within
    }
  }
  actions = each.value.actions
}
