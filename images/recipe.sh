# SPDX-License-Identifier: Apache-2.0
# What the recipes beside this file share: Debian packages in, an OCI layout out. A recipe sources it, defines
# make_root, which fills the directory $1, and calls build_image.

images=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BRIG_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/brig}
umask 022

say() { echo "images: $*" >&2; }
fail() { say "$@"; exit 1; }

# Unpacks the files of Debian packages into a directory, merging /bin, /lib, /lib64 and /sbin into /usr as Debian does.
unpack_packages() {
	local root=$1 directory file
	shift
	for directory in bin lib lib64 sbin; do
		mkdir -p "$root/usr/$directory"
		ln -sfn "usr/$directory" "$root/$directory"
	done
	for file in "$@"; do
		dpkg-deb --fsys-tarfile "$file" | tar -x -C "$root" --keep-directory-symlink --no-same-owner
	done
}

# The directories that every image has, and the users of Debian's base-passwd, made as its postinst makes them.
add_base_files() {
	local root=$1
	mkdir -p "$root"/{dev,etc,proc,root,run,sys,tmp,var/{cache,lib,log,tmp}}
	chmod 1777 "$root/tmp" "$root/var/tmp"
	chmod 700 "$root/root"
	cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
	cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
	echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
}

# Puts the files of Debian packages into the array $files.
find_packages() {
	local package
	files=()
	for package in "$@"; do files+=("$("$images/debian-package" "$package")"); done
}

# build_image NAME CONFIG OUT INPUT…: makes OUT from what make_root leaves, or takes it from the cache when the recipes,
# the configuration and the files INPUT are what they were.
build_image() {
	local name=$1 config=$2 out=$3 key work
	shift 3
	key=$(sha256sum "$images/recipe.sh" "$images/oci-tar" "$images/$name/build" "$config" "$@" | sed 's/ .*//' | sha256sum | cut -c1-32)
	if [ ! -e "$cache/images/$name-$key.tar" ]; then
		mkdir -p "$cache/images"
		work=$(mktemp -d "$cache/images/.work.XXXXXX")
		# shellcheck disable=SC2064 # the directory of now is meant
		trap "rm -rf '$work'" EXIT
		mkdir "$work/root"
		make_root "$work/root"
		"$images/oci-tar" "$name" "$config" "$work/root" "$work/image.tar"
		mv "$work/image.tar" "$cache/images/$name-$key.tar"
		rm -rf "$work"
		trap - EXIT
	fi
	mkdir -p "$(dirname "$out")"
	cp "$cache/images/$name-$key.tar" "$out.tmp"
	mv "$out.tmp" "$out"
}
