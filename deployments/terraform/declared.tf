# The declarations, read.
locals {
  templates = { process = "process-pool.json", kubernetes = "kubernetes/pool.json" }

  deployments = {
    for one in yamldecode(file("${path.module}/../../prefect.yaml")).deployments :
    "${split(":", one.entrypoint)[1]}/${one.name}" => {
      name              = one.name
      flow              = split(":", one.entrypoint)[1]
      entrypoint        = one.entrypoint
      description       = try(one.description, "")
      tags              = try(one.tags, [])
      parameters        = try(one.parameters, {})
      job_variables     = try(one.work_pool.job_variables, {})
      concurrency_limit = try(one.concurrency_limit.limit, null)
      collision         = try(one.concurrency_limit.collision_strategy, "ENQUEUE")
      schedules         = try(one.schedules, [])
      triggers          = try(one.triggers, [])
    }
  }

  schedules = merge([
    for name, one in local.deployments : {
      for each in one.schedules : "${name} ${each.slug}" => {
        deployment = name
        slug       = each.slug
        active     = try(each.active, true)
        cron       = try(each.cron, null)
        interval   = try(each.interval, null)
        timezone   = try(each.timezone, "UTC")
      }
    }
  ]...)

  triggers = merge([
    for name, one in local.deployments : {
      for each in one.triggers : "${name} ${each.name}" => {
        deployment    = name
        name          = each.name
        match         = each.match
        match_related = try(each.match_related, {})
        expect        = each.expect
        parameters    = each.parameters
      }
    }
  ]...)

  automations = {
    for one in yamldecode(file("${path.module}/../automations.yaml")).automations : one.name => one
  }
}
