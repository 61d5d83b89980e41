variable "prefect_api_url" {
  description = "Prefect's API, such as http://prefect.example.org:4200/api"
  type        = string
}

variable "prefect_api_auth_string" {
  description = "`user:password`, where the server wants them"
  type        = string
  default     = null
  sensitive   = true
}

variable "pool" {
  description = "What runs are: a `process` on the worker's machine, or a job of `kubernetes`"
  type        = string
  default     = "process"
  validation {
    condition     = contains(["process", "kubernetes"], var.pool)
    error_message = "It is process or kubernetes."
  }
}

variable "path" {
  description = "Where the project lies for the workers; in the images that is /project"
  type        = string
  default     = "/project"
}
