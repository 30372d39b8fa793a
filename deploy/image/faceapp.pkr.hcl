# One image for web and workers: Debian, faceapp and its units. `faceapp deploy image` runs
# `packer init deploy/image && packer build -var ... deploy/image`.

variable "region" {
  type        = string
  description = "Where the image is made. An image belongs to a region."
}

variable "version" {
  type        = string
  description = "faceapp's version, for the image's name and tags."
}

variable "sources" {
  type        = string
  description = "The archive of this checkout's sources, which the image builds and installs."
}

variable "stack" {
  type        = string
  default     = "faceapp"
  description = "The stack's prefix: what is left behind, and old images, are found by it."
}

variable "torch_index" {
  type        = string
  default     = ""
  description = "The index of torch's CPU builds that PyTorch's site names. Without it pip's own is asked."
}

variable "torch_sha256" {
  type        = string
  default     = ""
  description = "The SHA-256 of torch's and torchvision's files in that index, with a space between them; empty: not checked."
}

variable "architecture" {
  type        = string
  default     = "amd64"
  description = "amd64 or arm64: what the instances' types are."

  validation {
    condition     = contains(["amd64", "arm64"], var.architecture)
    error_message = "The architecture is amd64 or arm64."
  }
}

variable "debian" {
  type        = string
  default     = "13"
  description = "Debian's release: 13, or 12."
}

variable "builder_type" {
  type        = string
  default     = ""
  description = "The instance type that makes the image; empty: c7a.large, or c7g.large for arm64."
}

variable "volume_gib" {
  type        = number
  default     = 8
  description = "The image's volume. Each instance has one as large, and pays for it while it is stopped, too."
}

variable "kms_key" {
  type        = string
  default     = ""
  description = "The key that encrypts the volume; empty: the account's own for EBS."
}

variable "subnet" {
  type        = string
  default     = ""
  description = "A subnet with a way to the internet; empty: the default VPC's."
}

variable "cidr" {
  type        = string
  default     = ""
  description = "From where Packer logs in while the image is made, as a range; empty: this machine's public address."
}

variable "fluent_bit_deb" {
  type        = string
  default     = ""
  description = "fluent-bit's package for this Debian, an https URL, for ShipLogs=yes; empty: not installed."
}

variable "fluent_bit_sha256" {
  type        = string
  default     = ""
  description = "The package's checksum."
}

locals {
  builder_types = { amd64 = "c7a.large", arm64 = "c7g.large" }
  made          = formatdate("YYYYMMDD-hhmmss", timestamp())

  tags = {
    "faceapp:stack"   = var.stack
    "faceapp:version" = var.version
    "faceapp:base"    = "debian-${var.debian}-${var.architecture}"
  }
}

source "amazon-ebs" "faceapp" {
  region          = var.region
  ami_name        = "${var.stack}-${var.version}-${var.architecture}-${local.made}"
  ami_description = "faceapp ${var.version} on Debian ${var.debian}"
  instance_type   = var.builder_type != "" ? var.builder_type : local.builder_types[var.architecture]
  subnet_id       = var.subnet
  ssh_username    = "admin"
  # Packer's own default lets the whole internet knock at the port.
  temporary_security_group_source_cidrs     = var.cidr != "" ? [var.cidr] : null
  temporary_security_group_source_public_ip = var.cidr == ""
  encrypt_boot                              = true
  kms_key_id                                = var.kms_key
  ena_support                               = true

  # Debian's own: https://wiki.debian.org/Cloud/AmazonEC2Image
  source_ami_filter {
    owners      = ["136693071363"]
    most_recent = true
    filters = {
      name                = "debian-${var.debian}-${var.architecture}-*"
      virtualization-type = "hvm"
      root-device-type    = "ebs"
    }
  }

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = var.volume_gib
    iops                  = 3000
    throughput            = 125
    delete_on_termination = true
    encrypted             = true
    kms_key_id            = var.kms_key
  }

  # Version 2 only, for the machine that makes the image and for every one that is made of it.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  imds_support = "v2.0"

  tags          = merge(local.tags, { Name = "${var.stack}-${var.version}" })
  snapshot_tags = local.tags
  run_tags      = merge(local.tags, { Name = "${var.stack}-image" })
}

build {
  sources = ["source.amazon-ebs.faceapp"]

  provisioner "shell" {
    inline = ["mkdir -p /tmp/faceapp/deploy"]
  }

  provisioner "file" {
    sources = [
      "${path.root}/../image",
      "${path.root}/../libexec",
      "${path.root}/../logs",
      "${path.root}/../nginx",
      "${path.root}/../units",
    ]
    destination = "/tmp/faceapp/deploy/"
  }

  provisioner "file" {
    sources = [
      "${path.root}/../../requirements.txt",
      "${path.root}/../../requirements-build.txt",
      "${path.root}/../../requirements-cuda.txt",
      var.sources,
    ]
    destination = "/tmp/faceapp/"
  }

  provisioner "shell" {
    environment_vars = [
      "TORCH_INDEX=${var.torch_index}",
      "TORCH_SHA256=${var.torch_sha256}",
      "FLUENT_BIT_DEB=${var.fluent_bit_deb}",
      "FLUENT_BIT_SHA256=${var.fluent_bit_sha256}",
    ]
    # Debian's images still start when Packer logs in: apt's lists and cloud-init's own work come first.
    inline = [
      "cloud-init status --wait >/dev/null",
      "sudo --preserve-env=TORCH_INDEX,TORCH_SHA256,FLUENT_BIT_DEB,FLUENT_BIT_SHA256 bash /tmp/faceapp/deploy/image/provision.sh --sources /tmp/faceapp/${basename(var.sources)}",
    ]
  }
}
