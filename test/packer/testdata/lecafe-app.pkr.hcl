# Made from recipe.yaml by `lecafe packer template`: the same steps, cleaning and
# inspection as `lecafe bake`, in a build that Packer is in charge of.

packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.4"
    }
    lecafe = {
      source  = "github.com/lecafe/lecafe"
      version = ">= 0.1.0"
    }
  }
}

variable "region" {
  type        = string
  default     = "us-east-1"
  description = "Where the image is made."
}

variable "ssh_username" {
  type        = string
  default     = "admin"
  description = "The source image's user; it may use sudo without a password."
}

variable "lecafe_programs" {
  type        = string
  default     = null
  description = "Directory of lecafe-agent and lecafe-builder, where they are neither beside the plugin nor in PATH."
}

variable "git_commit" {
  type        = string
  default     = "none"
  description = "Pass -var \"git_commit=$(git rev-parse --short=12 HEAD)\"."
}

locals {
  time = formatdate("YYYYMMDD-hhmmss", timestamp())
  env  = "HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive"
  # Steps run as root and stop at the first command that fails.
  run = "sudo -n env ${local.env} {{ .Vars }} bash -e {{ .Path }}"
}

# Asked anew at each build.
data "amazon-parameterstore" "source" {
  name   = "/aws/service/debian/release/12/latest/amd64"
  region = var.region
}

source "amazon-ebs" "image" {
  region          = var.region
  ami_name        = "lecafe-ordering-${local.time}"
  ami_description = "Le Café's ordering backend on Debian 12, from ${var.git_commit}"
  source_ami      = data.amazon-parameterstore.source.value
  instance_type   = "t3.small"

  # Packer needs ssh to the builder, which lecafe bake does not: the temporary
  # security group lets in this machine's public address alone.
  ssh_username                              = var.ssh_username
  temporary_key_pair_type                   = "ed25519"
  temporary_security_group_source_public_ip = true

  # Builder and image answer to IMDSv2 alone, and not to containers.
  imds_support = "v2.0"
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  # Packer's own polls are 15 seconds and more apart.
  aws_polling {
    delay_seconds = 2
    max_attempts  = 1800
  }

  tags = {
    "Name" = "lecafe-ordering-${local.time}"
  }
  snapshot_tags = {
    "Name" = "lecafe-ordering-${local.time}"
  }
}

build {
  name    = "lecafe-ordering"
  sources = ["source.amazon-ebs.image"]

  # Step 1: packages
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "if command -v apt-get >/dev/null; then",
      "  apt() { apt-get -y -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \"$@\"; }",
      "  cloud-init status --wait >/dev/null || true",
      "  apt update",
      "  apt install -- jq",
      "else",
      "  dnf=$(command -v dnf || command -v yum)",
      "  \"$dnf\" -y install jq",
      "fi",
    ]
  }

  # Step 2: the application
  provisioner "file" {
    source      = "${path.root}/files/lecafe-ordering"
    destination = "/tmp/lecafe-1-lecafe-ordering"
  }
  provisioner "file" {
    source      = "${path.root}/files/lecafe-ordering.service"
    destination = "/tmp/lecafe-2-lecafe-ordering.service"
  }
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "install -D -m 0755 -o root -g root /tmp/lecafe-1-lecafe-ordering /opt/lecafe/lecafe-ordering",
      "rm /tmp/lecafe-1-lecafe-ordering",
      "install -D -m 0644 -o root -g root /tmp/lecafe-2-lecafe-ordering.service /etc/systemd/system/lecafe-ordering.service",
      "rm /tmp/lecafe-2-lecafe-ordering.service",
    ]
  }

  # Step 3: check the application
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "jq --version",
      "sh -n /opt/lecafe/lecafe-ordering",
    ]
  }

  # Last: installs lecafe-agent, cleans, and fails the build on what must not be
  # in an image. It removes the builder's user and keys, so nothing can follow.
  provisioner "lecafe" {
    programs = var.lecafe_programs
    # Becomes /etc/lecafe/agent.yaml.
    settings_content = <<-YAML
      bootstrap:
        deadline: 5m0s
      report:
        s3:
          bucket: lecafe-reports
        sqs:
          queue: lecafe-reports
    YAML
  }

  # The image's ID, for what comes after the build.
  post-processor "manifest" {
    output     = "${path.root}/packer-manifest.json"
    strip_path = true
  }
}
