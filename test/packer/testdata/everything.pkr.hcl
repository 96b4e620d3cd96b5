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
  default     = "ubuntu"
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

variable "content_hash" {
  type        = string
  default     = "none"
  description = "lecafe bake derives it from the content; pass what identifies yours."
}

variable "root_device" {
  type        = string
  default     = "/dev/sda1"
  description = "Device name of the source image's root volume."
}

locals {
  time = formatdate("YYYYMMDD-hhmmss", timestamp())
  env  = "HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive"
  # Steps run as root and stop at the first command that fails.
  run = "sudo -n env ${local.env} {{ .Vars }} bash -e {{ .Path }}"
}

source "amazon-ebs" "image" {
  region          = var.region
  ami_name        = "everything-${local.time}-${var.content_hash}"
  ami_description = "costs $${5} and 100%%{or so}, from ${var.git_commit}"
  instance_type   = "t3.small"
  source_ami_filter {
    owners      = ["099720109477"]
    most_recent = true
    filters = {
      architecture          = "x86_64"
      state                 = "available"
      name                  = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*"
      "virtualization-type" = "hvm"
    }
  }

  ssh_username                = var.ssh_username
  temporary_key_pair_type     = "ed25519"
  security_group_ids          = ["sg-0123456789abcdef0"]
  subnet_id                   = "subnet-0123456789abcdef0"
  iam_instance_profile        = "builder"
  associate_public_ip_address = true

  run_tags = {
    "app"     = "everything"
    "purpose" = "bake"
  }

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

  launch_block_device_mappings {
    device_name           = var.root_device
    delete_on_termination = true
    volume_type           = "gp3"
    volume_size           = 12
    iops                  = 3000
    throughput            = 125
  }

  launch_block_device_mappings {
    device_name           = "/dev/sdf"
    delete_on_termination = true
    volume_type           = "gp3"
    volume_size           = 2
  }

  encrypt_boot = true
  kms_key_id   = "alias/images"
  ami_regions  = ["eu-west-1", "eu-central-1"]
  ami_users    = ["123456789012"]
  ami_org_arns = ["arn:aws:organizations::123456789012:organization/o-abcdefghij"]
  deprecate_at = timeadd(timestamp(), "2160h")
  region_kms_key_ids = {
    "eu-central-1" = "alias/de"
    "eu-west-1"    = "alias/eu"
  }

  deregistration_protection {
    enabled = true
  }

  tags = {
    "Name"   = "everything-${local.time}-${var.content_hash}"
    "app"    = "everything"
    "commit" = "${var.git_commit}"
    "team"   = "coffee"
  }
  snapshot_tags = {
    "Name"   = "everything-${local.time}-${var.content_hash}"
    "app"    = "everything"
    "commit" = "${var.git_commit}"
    "team"   = "coffee"
  }
}

build {
  name    = "everything"
  sources = ["source.amazon-ebs.image"]

  # Step 1
  provisioner "file" {
    source      = "${path.root}/files/extra.deb"
    destination = "/tmp/lecafe-1-extra.deb"
  }
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "if command -v apt-get >/dev/null; then",
      "  apt() { apt-get -y -q -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \"$@\"; }",
      "  cloud-init status --wait >/dev/null || true",
      "  apt update",
      "  apt dist-upgrade",
      "  apt purge -- nano",
      "  apt install -- jq curl /tmp/lecafe-1-extra.deb",
      "else",
      "  dnf=$(command -v dnf || command -v yum)",
      "  \"$dnf\" -y upgrade",
      "  \"$dnf\" -y remove nano",
      "  \"$dnf\" -y install jq curl /tmp/lecafe-1-extra.deb",
      "fi",
      "rm /tmp/lecafe-1-extra.deb",
    ]
  }

  # Step 2: files
  provisioner "file" {
    content     = "Bonjour \"à\" tous\n$${not_hcl} %%{neither} {{`{{`}} .Names }}\n"
    destination = "/tmp/lecafe-2-motd"
  }
  provisioner "file" {
    source      = "${path.root}/files/tool.sh"
    destination = "/tmp/lecafe-3-tool"
  }
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "install -D -m 0644 -o root -g root /tmp/lecafe-2-motd /etc/motd",
      "rm /tmp/lecafe-2-motd",
      "install -D -m 0755 -o root -g root /tmp/lecafe-3-tool '/opt/with space/tool'",
      "rm /tmp/lecafe-3-tool",
    ]
  }

  # Step 3: script
  provisioner "shell" {
    execute_command  = local.run
    script           = "${path.root}/files/tool.sh"
    environment_vars = ["CUPS=3", "NAME=it's $${HOME}"]
    timeout          = "2m0s"
  }

  # Step 4: lines
  # Packer takes {{ in inline lines for a template of its own, more than once. In
  # base64:
  # x=$(hostname)
  # echo "${x} \ and a tab:	. {{ .Names }}"
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "echo eD0kKGhvc3RuYW1lKQplY2hvICIke3h9IFwgYW5kIGEgdGFiOgkuIHt7IC5OYW1lcyB9fSIK | base64 -d >/tmp/lecafe-4-run",
      "bash -e /tmp/lecafe-4-run",
      "rm /tmp/lecafe-4-run",
    ]
  }

  # Step 5: plain sh
  provisioner "shell" {
    execute_command = "sudo -n env ${local.env} {{ .Vars }} /bin/sh -e {{ .Path }}"
    inline = [
      "echo plain",
    ]
  }

  # Step 6: python
  provisioner "shell" {
    execute_command = "sudo -n env ${local.env} {{ .Vars }} /usr/bin/env python3 {{ .Path }}"
    inline = [
      "print(\"hello\")",
    ]
  }

  # Step 7
  provisioner "shell" {
    execute_command   = local.run
    expect_disconnect = true
    pause_after       = "15s"
    inline = [
      "systemctl --no-block reboot",
    ]
  }

  # Step 8
  provisioner "shell" {
    execute_command = local.run
    inline = [
      "systemctl daemon-reload",
      "systemctl enable -- fstrim.timer",
      "systemctl disable --now -- apt-daily.timer",
      "systemctl mask --now -- apt-daily-upgrade.timer",
    ]
  }

  # Last: installs lecafe-agent, cleans, and fails the build on what must not be
  # in an image. It removes the builder's user and keys, so nothing can follow.
  provisioner "lecafe" {
    programs        = var.lecafe_programs
    keep            = ["swap", "hostname"]
    zero_free_space = true
    # Becomes /etc/lecafe/agent.yaml.
    settings_content = <<-YAML
      report:
        s3:
          bucket: lecafe-reports
    YAML
  }

  # One after the other: an image whose canary fails gets no further, and Packer
  # removes it.
  post-processors {
    post-processor "lecafe-publish" {
      recipe_name = "everything"
      region      = var.region
      programs    = var.lecafe_programs
      tags = {
        "app" = "everything"
      }

      # Where the canary fetches its tests and puts its result.
      staging {
        bucket = "lecafe-staging"
      }

      # One instance of the image, in no group. Its agent must say success.
      canary {
        instance_type       = "t3.small"
        subnet              = "subnet-0123456789abcdef0"
        security_groups     = ["sg-0123456789abcdef0"]
        associate_public_ip = true
        deadline            = "5m"

        test {
          name    = "braces"
          run     = "grep -F '{{`{{`}} .Names }}' /etc/motd"
          timeout = "2m"
        }
      }

      # A new version; the group refreshed to it; only then default version and
      # parameter.
      promote {
        launch_template = "everything"
        ssm_parameter   = "/images/everything"
      }
    }

    # The image's ID, for what comes after the build.
    post-processor "manifest" {
      output     = "${path.root}/packer-manifest.json"
      strip_path = true
    }
  }
}
